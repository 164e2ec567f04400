/* The page as an instrument: tables that sort and copy, contents that follow the reading, and the patch browser.
   Text reaches the page through textContent only, so that a name can never become markup. */
"use strict";
document.documentElement.classList.add("scripted");

const PHONE = matchMedia("(max-width: 34rem)");
const collator = new Intl.Collator(undefined, { numeric: true });

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

const data = element => JSON.parse(element.textContent);

async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {  // no permission: select a hidden text and let the browser copy it
    const area = make("textarea", { class: "unseen" });
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  const before = button.textContent;
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = before; }, 1500);
}

/* ---- tables ---- */

function setUpTable(box) {
  const table = box.querySelector("table"), body = table.tBodies[0], rows = [...body.rows];
  const heads = [...table.tHead.rows[0].cells], files = data(box.querySelector("script"));
  const shown = () => [...body.rows].filter(row => !row.hidden).map(row => Number(row.dataset.row));
  const tools = make("div", { class: "tools" });
  if (rows.length > 7) {
    const status = make("span", { role: "status" });
    const filter = make("input", { type: "search", placeholder: "Filter rows", "aria-label": `Filter rows of ${box.dataset.title}` });
    filter.addEventListener("input", () => {
      const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
      for (const row of rows) row.hidden = !words.every(word => row.textContent.toLowerCase().includes(word));
      status.textContent = words.length ? `${shown().length} of ${rows.length} rows` : "";
    });
    tools.append(filter, status);
  }
  const csv = () => [files.csv[0], ...shown().map(k => files.csv[k + 1])].join("\r\n") + "\r\n";
  const latex = () => [files.latex[0], ...shown().map(k => files.latex[1][k]), files.latex[2]].join("\n");
  for (const [name, text] of [["CSV", csv], ["LaTeX", latex]])
    tools.append(make("button", { type: "button", onclick: event => copy(text(), event.currentTarget),
      "aria-label": `Copy ${box.dataset.title} as ${name}` }, `Copy ${name}`));
  box.prepend(tools);

  const value = (row, k) => {
    const cell = [...row.cells].find(one => Number(one.dataset.c) === k);
    return cell.dataset.v === undefined ? cell.textContent.trim() : Number(cell.dataset.v);
  };
  const compare = k => (a, b) => {
    const [x, y] = [value(a, k), value(b, k)];
    if (typeof x === typeof y) return typeof x === "number" ? x - y : collator.compare(x, y);
    return typeof x === "number" ? -1 : 1;  // missing numbers come last
  };
  heads.forEach((head, k) => {
    for (const row of [table.tHead.rows[0], ...rows]) row.cells[k].dataset.c = k;
    const button = make("button", { type: "button", class: "sort", onclick: () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const order = [...rows].sort(compare(k));
      if (down) order.reverse();
      body.append(...order);
    } }, ...head.childNodes);
    head.append(button);
  });

  // On a phone the first column names the row whole, and the column that decides comes second.
  const deciding = heads.findIndex(head => "deciding" in head.dataset);
  const keys = heads.map((head, k) => ("key" in head.dataset ? k : -1)).filter(k => k > 0);
  for (const row of [table.tHead.rows[0], ...rows]) {
    const names = keys.map(k => row.cells[k].textContent.trim()).filter(name => name && name !== "–");
    for (const k of keys) row.cells[k].classList.add("key");
    if (names.length) row.cells[0].append(make("small", { class: "keys" }, names.join(", ")));
  }
  const arrange = () => {
    const place = cell => {
      const k = Number(cell.dataset.c);
      return !PHONE.matches || k === 0 ? k : k === deciding ? 0.5 : k;
    };
    for (const row of [table.tHead.rows[0], ...rows]) row.append(...[...row.cells].sort((a, b) => place(a) - place(b)));
  };
  if (deciding > 1) {
    PHONE.addEventListener("change", arrange);
    if (PHONE.matches) arrange();
  }
}

/* ---- figures, contents, print ---- */

function setUpFigure(figure) {
  const image = figure.querySelector("img");
  if (!image.src.startsWith("data:image/svg")) return;
  figure.append(make("a", { class: "download", href: image.src, download: `${figure.dataset.name}.svg` }, "Download SVG"));
}

function setUpContents(nav) {
  const wide = matchMedia("(min-width: 88rem)"), details = nav.querySelector("details"), here = make("span", { class: "here" });
  details.querySelector("summary").append(here);
  const fold = () => { details.open = wide.matches; };
  wide.addEventListener("change", fold);
  nav.addEventListener("click", event => { if (event.target.closest("a")) fold(); });
  fold();
  const links = new Map([...nav.querySelectorAll("a")].map(link => [link.hash.slice(1), link]));
  const places = [...links.keys()].map(id => document.getElementById(id)).filter(Boolean);
  const follow = () => {
    const above = places.filter(place => place.getBoundingClientRect().top < 140);
    const current = above.length ? above[above.length - 1].id : "";
    here.textContent = current ? `: ${links.get(current).textContent}` : "";
    for (const [id, link] of links) {
      if (id === current && !link.hasAttribute("aria-current")) {
        link.setAttribute("aria-current", "location");
        if (nav.scrollHeight > nav.clientHeight) nav.scrollTop = link.offsetTop - nav.clientHeight / 2;
      } else if (id !== current) link.removeAttribute("aria-current");
    }
  };
  let waiting = false;
  addEventListener("scroll", () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; follow(); });
  }, { passive: true });
  follow();
}

addEventListener("beforeprint", () => { for (const one of document.querySelectorAll("details")) one.open = true; });

/* ---- the patch browser ---- */

const COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C7A00"];
const VIRIDIS = ["#440154", "#472d7b", "#3b528b", "#2c728e", "#21918c", "#28ae80", "#5ec962", "#addc30", "#fde725"];
const MISSING = "#bbbbbb", PAGE = 48, BINS = 24, SIDE = 1000;

const text = value => value == null ? "–"
  : (Math.abs(value) >= 1e5 || (value && Math.abs(value) < 1e-3) ? value.toExponential(2) : String(Number(value.toPrecision(4)))).replace("-", "−");

class Browser {
  constructor(root) {
    this.root = root;
    this.all = data(root.querySelector("script"));
    this.n = this.all.ids.length;
    this.filters = new Map();  // key → { words, test }
    this.numbers = new Map(this.all.numbers.map(one => [one.name, this.prepared(one)]));
    this.classes = new Map(this.all.classes.map(one => [one.name, one]));
    this.sort = this.all.numbers[0]?.name ?? "patch";
    this.order = "down";
    this.colour = this.all.classes[0]?.name ?? this.sort;
    this.page = 0;
    this.chosen = null;
    this.build();
    this.update();
  }

  prepared(one) {
    const finite = one.values.filter(value => value != null).sort((a, b) => a - b);
    const [low, high] = [finite[0] ?? 0, finite[finite.length - 1] ?? 1], width = (high - low) / BINS || 1;
    const at = share => finite[Math.floor(share * (finite.length - 1))] ?? 0, middle = at(0.5);
    const spread = 1.4826 * (finite.map(v => Math.abs(v - middle)).sort((a, b) => a - b)[Math.floor((finite.length - 1) / 2)] ?? 0);
    const bins = Uint8Array.from(one.values, v => v == null ? 255 : Math.min(BINS - 1, Math.floor((v - low) / width)));
    const far = one.values.map(v => v != null && spread > 0 && Math.abs(v - middle) > 3.5 * spread);
    return { ...one, low, high, width, bins, far, outliers: far.filter(Boolean).length, from: at(0.02), to: at(0.98) };
  }

  /* -- what is shown -- */

  update() {
    const tests = [...this.filters.values()].map(filter => filter.test);
    this.inside = new Uint8Array(this.n);
    const rows = [];
    for (let i = 0; i < this.n; i++) if (tests.every(test => test(i))) { this.inside[i] = 1; rows.push(i); }
    const values = this.numbers.get(this.sort)?.values, one = this.classes.get(this.sort);
    const sign = this.order === "up" ? 1 : -1;
    if (values) rows.sort((a, b) => values[a] == null ? (values[b] == null ? a - b : 1) : values[b] == null ? -1 : sign * (values[a] - values[b]) || a - b);
    else if (one) rows.sort((a, b) => -sign * (one.codes[a] - one.codes[b]) || a - b);
    else if (this.order === "up") rows.reverse();
    this.rows = rows;
    this.count.textContent = `${rows.length} of ${this.n} patches`;
    this.page = 0;
    this.marks.replaceChildren(...[...this.filters].map(([key, filter]) => make("button", { type: "button", class: "mark",
      onclick: () => { this.filters.delete(key); this.update(); }, "aria-label": `Remove the filter ${filter.words}` }, `${filter.words} ×`)));
    this.clear.hidden = !this.filters.size;
    for (const chip of this.chips) chip.button.setAttribute("aria-pressed", this.filters.get(chip.name)?.codes?.has(chip.code) ?? false);
    for (const draw of this.drawn) draw();
    this.fill();
  }

  filter(key, words, test, more = {}) {
    this.filters.set(key, { words, test, ...more });
    this.update();
  }

  chooseClass(name, code, only = false) {
    const one = this.classes.get(name), codes = new Set(only ? [] : this.filters.get(name)?.codes);
    if (codes.has(code)) codes.delete(code); else codes.add(code);
    if (!codes.size) { this.filters.delete(name); this.update(); return; }
    this.filter(name, `${name}: ${[...codes].map(c => one.names[c]).join(", ")}`, i => codes.has(one.codes[i]), { codes });
  }

  chooseRange(name, low, high) {
    const { values } = this.numbers.get(name);
    this.filter(name, `${name}: ${text(low)} to ${text(high)}`, i => values[i] != null && values[i] >= low && values[i] <= high, { low, high });
  }

  sortBy(name, order) {
    this.sort = name;
    this.order = order ?? this.order;
    this.sorting.value = name;
    this.ordering.value = this.order;
    if (!this.numbers.has(name)) this.ordering.value = this.order = this.order === "ends" ? "down" : this.order;
    this.update();
  }

  colours() {
    const one = this.classes.get(this.colour), number = this.numbers.get(this.colour);
    if (one) return { names: one.names, colours: one.names.map((_, k) => COLOURS[k % 8]), codes: one.codes };
    const span = number.to - number.from || 1;
    const codes = number.values.map(v => v == null ? 9 : Math.max(0, Math.min(8, Math.floor(9 * (v - number.from) / span))));
    const names = VIRIDIS.map((_, k) => k === 0 ? `≤ ${text(number.from)}` : k === 8 ? `≥ ${text(number.to)}` : "").concat("missing");
    return { names, colours: [...VIRIDIS, MISSING], codes };
  }

  /* -- the parts -- */

  build() {
    const option = name => make("option", { value: name }, name);
    const names = [...this.numbers.keys()], classes = [...this.classes.keys()];
    const select = (label, options, change) => {
      const list = make("select", { onchange: event => change(event.currentTarget.value) }, ...options);
      return [make("label", {}, `${label} `, list), list];
    };
    const [sortLabel, sorting] = select("Sort by", [...names, ...classes, "patch"].map(option), name => this.sortBy(name));
    const orders = [["down", "highest first"], ["up", "lowest first"], ["ends", "both ends, side by side"]];
    const [orderLabel, ordering] = select("Order", orders.map(([value, words]) => make("option", { value }, words)), order => this.sortBy(this.sort, order));
    const [colourLabel, colouring] = select("Colour", [...classes, ...names].map(option), name => { this.colour = name; this.update(); });
    const search = make("input", { type: "search", placeholder: "Find a patch or group", "aria-label": "Find a patch or group" });
    search.addEventListener("input", () => {
      const word = search.value.toLowerCase();
      if (!word) { this.filters.delete("search"); this.update(); return; }
      const { ids, groups } = this.all;
      this.filter("search", `name has “${search.value}”`, i => ids[i].toLowerCase().includes(word) || groups[i].toLowerCase().includes(word));
    });
    Object.assign(this, { sorting, ordering, colouring, drawn: [], chips: [] });
    this.count = make("strong", { role: "status" });
    this.marks = make("span", { class: "marks" });
    this.clear = make("button", { type: "button", hidden: true, onclick: () => { this.filters.clear(); search.value = ""; this.update(); } }, "Show all");
    this.grid = make("div", { class: "grid" });
    this.more = make("div", { class: "tools" });
    this.card = make("div", { class: "detail", "aria-live": "polite" });
    const shortcuts = this.all.shortcuts.filter(one => this.numbers.has(one.name)).map(one =>
      make("button", { type: "button", onclick: () => this.sortBy(one.name, one.order) }, one.words));
    this.root.append(
      ...(shortcuts.length ? [make("div", { class: "tools shortcuts" }, ...shortcuts)] : []),
      make("div", { class: "tools" }, sortLabel, orderLabel, ...(this.all.spaces.length ? [colourLabel] : []), search),
      make("div", { class: "tools" }, this.count, this.marks, this.clear),
      make("div", { class: "spaces" }, ...this.all.spaces.map(space => this.space(space))),
      this.legend(),
      make("div", { class: "chips" }, ...this.all.classes.filter(one => one.names.length <= 15).map(one => this.group(one))),
      make("div", { class: "histograms" }, ...[...this.numbers.values()].map(one => this.histogram(one))),
      make("div", { class: "browse" }, make("div", {}, this.grid, this.more), this.card));
  }

  legend() {
    const box = make("p", { class: "legend" });
    if (this.all.spaces.length) this.drawn.push(() => {
      const { names, colours } = this.colours();
      box.replaceChildren(...names.flatMap((name, k) => {
        const dot = make("span", { class: "dot" });
        dot.style.background = colours[k];
        return name || k ? [make("span", {}, dot, name)] : [];
      }));
    });
    return box;
  }

  group(one) {
    const totals = new Array(one.names.length).fill(0);
    for (const code of one.codes) if (code >= 0) totals[code] += 1;
    const buttons = one.names.map((name, code) => {
      const button = make("button", { type: "button", "aria-pressed": "false", onclick: () => this.chooseClass(one.name, code) }, `${name} ${totals[code]}`);
      this.chips.push({ name: one.name, code, button });
      return button;
    });
    return make("div", { role: "group", "aria-label": one.name, class: "tools" }, make("span", { class: "soft" }, one.name), ...buttons);
  }

  canvas(width, height, label) {
    const canvas = make("canvas", { role: "img", "aria-label": label }), scale = Math.min(2, devicePixelRatio || 1);
    canvas.width = width * scale;
    canvas.height = height * scale;
    const pen = canvas.getContext("2d");
    pen.scale(scale, scale);
    const at = event => {
      const box = canvas.getBoundingClientRect();
      return [(event.clientX - box.left) / box.width * width, (event.clientY - box.top) / box.height * height];
    };
    return { canvas, pen, at };
  }

  space(space) {
    const size = 440, edge = 8, { canvas, pen, at } = this.canvas(size, size, `${space.title}: ${space.caption} Drag to select patches.`);
    const x = i => edge + space.xy[2 * i] / SIDE * (size - 2 * edge), y = i => size - edge - space.xy[2 * i + 1] / SIDE * (size - 2 * edge);
    const has = i => space.xy[2 * i] != null, dot = this.n > 3000 ? 3 : 5;
    let start = null, end = null;
    const draw = () => {
      const { codes, colours } = this.colours();
      pen.clearRect(0, 0, size, size);
      const lists = colours.map(() => []), rest = [];
      for (let i = 0; i < this.n; i++) if (has(i)) (this.inside[i] ? lists[codes[i]] ?? rest : rest).push(i);
      const points = (rows, colour, alpha) => {
        pen.fillStyle = colour;
        pen.globalAlpha = alpha;
        for (const i of rows) pen.fillRect(x(i) - dot / 2, y(i) - dot / 2, dot, dot);
      };
      points(rest, "#888888", 0.15);
      lists.forEach((rows, k) => points(rows, colours[k], 0.75));
      pen.globalAlpha = 1;
      pen.strokeStyle = "#000000";
      if (this.chosen != null && has(this.chosen)) pen.strokeRect(x(this.chosen) - 6, y(this.chosen) - 6, 12, 12);
      if (start && end) pen.strokeRect(Math.min(start[0], end[0]), Math.min(start[1], end[1]), Math.abs(end[0] - start[0]), Math.abs(end[1] - start[1]));
    };
    this.drawn.push(draw);
    const nearest = ([px, py], count) => {
      const away = i => (x(i) - px) ** 2 + (y(i) - py) ** 2;
      const rows = [];
      for (let i = 0; i < this.n; i++) if (has(i)) rows.push(i);
      return rows.sort((a, b) => away(a) - away(b)).slice(0, count);
    };
    canvas.addEventListener("pointerdown", event => {
      if (event.pointerType === "touch") return;  // a finger scrolls; a tap is a click
      start = at(event);
      end = null;
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointermove", event => {
      if (start) { end = at(event); draw(); return; }
      const [i] = nearest(at(event), 1);
      canvas.title = i === undefined ? "" : this.all.ids[i];
    });
    canvas.addEventListener("pointerup", () => {
      if (start && end && Math.hypot(end[0] - start[0], end[1] - start[1]) > 6) {
        const [left, right] = [start[0], end[0]].sort((a, b) => a - b), [top, bottom] = [start[1], end[1]].sort((a, b) => a - b);
        this.brushed = true;
        this.filter("map", `box in ${space.title}`, i => has(i) && x(i) >= left && x(i) <= right && y(i) >= top && y(i) <= bottom);
      }
      start = end = null;
      draw();
    });
    canvas.addEventListener("click", event => {
      if (this.brushed) { this.brushed = false; return; }
      const rows = nearest(at(event), 24);
      if (rows.length) this.near(space, rows);
    });
    space.near = i => this.near(space, nearest([x(i), y(i)], 24));
    space.has = has;
    return make("figure", { class: "card" }, make("figcaption", { class: "above" }, space.title), canvas, make("figcaption", {}, space.caption));
  }

  near(space, rows) {
    const kept = new Set(rows);
    this.chosen = rows[0];
    this.filter("map", `${rows.length} nearest in ${space.title}`, i => kept.has(i));
    this.show(rows[0]);
  }

  histogram(one) {
    const width = 220, height = 64, { canvas, pen, at } = this.canvas(width, height, `Histogram of ${one.name}: drag to select a range`);
    const total = new Array(BINS).fill(0);
    for (const bin of one.bins) if (bin < BINS) total[bin] += 1;
    const most = Math.max(1, ...total), step = width / BINS;
    this.drawn.push(() => {
      const count = new Array(BINS).fill(0);
      for (const i of this.rows) if (one.bins[i] < BINS) count[one.bins[i]] += 1;
      pen.clearRect(0, 0, width, height);
      for (const [counts, colour] of [[total, "#d5dbe0"], [count, "#0072b2"]]) {
        pen.fillStyle = colour;
        counts.forEach((value, k) => { const tall = value && Math.max(1, value / most * (height - 2)); pen.fillRect(k * step, height - tall, step - 1, tall); });
      }
      const limits = this.filters.get(one.name);
      low.value = limits?.low ?? "";
      high.value = limits?.high ?? "";
    });
    const bin = event => Math.max(0, Math.min(BINS - 1, Math.floor(at(event)[0] / step)));
    let start = null;
    canvas.addEventListener("pointerdown", event => { start = bin(event); });
    canvas.addEventListener("pointerup", event => {
      if (start == null) return;
      const [from, to] = [start, bin(event)].sort((a, b) => a - b);
      start = null;
      this.chooseRange(one.name, one.low + from * one.width, to === BINS - 1 ? one.high : one.low + (to + 1) * one.width);
    });
    const typed = () => {
      if (low.value === "" && high.value === "") { this.filters.delete(one.name); this.update(); return; }
      this.chooseRange(one.name, low.value === "" ? one.low : Number(low.value), high.value === "" ? one.high : Number(high.value));
    };
    const input = (label, value) => make("input", { type: "number", step: "any", placeholder: text(value), "aria-label": `${one.name} ${label}`, onchange: typed });
    const low = input("from", one.low), high = input("to", one.high);
    const outliers = one.outliers ? [make("button", { type: "button", onclick: () => {
      this.filters.set(one.name, { words: `outliers of ${one.name}`, test: i => one.far[i] });
      this.sortBy(one.name, "ends");
    } }, `${one.outliers} outliers`)] : [];
    return make("figure", { class: "histogram", title: one.meaning }, make("figcaption", {}, one.name), canvas,
      make("div", { class: "tools" }, low, "to", high, ...outliers));
  }

  /* -- the patches -- */

  tile(i) {
    const label = this.classes.has(this.sort) ? this.className(this.sort, i) : this.numbers.has(this.sort) ? text(this.numbers.get(this.sort).values[i]) : this.all.ids[i];
    const pair = this.all.pairs.find(one => one.change === this.sort);
    const words = pair ? `${text(this.numbers.get(pair.before).values[i])} → ${text(this.numbers.get(pair.after).values[i])}` : label;
    const button = make("button", { type: "button", class: "patch", onclick: () => { this.chosen = i; this.show(i); for (const draw of this.drawn) draw(); } },
      ...(this.all.images ? [this.image(i, 64)] : []), make("span", {}, words), make("span", { class: "unseen" }, ` ${this.all.ids[i]}`));
    return make("li", {}, button);
  }

  image(i, side) {
    return make("img", { src: `data:image/webp;base64,${this.all.images[i]}`, alt: "", width: side, height: side });
  }

  className(name, i) {
    const one = this.classes.get(name);
    return one.codes[i] < 0 ? "–" : one.names[one.codes[i]];
  }

  fill() {
    const list = (rows, words) => make("div", {}, ...(words ? [make("p", { class: "soft" }, words)] : []), make("ul", { class: "patches" }, ...rows.map(i => this.tile(i))));
    const values = this.numbers.get(this.sort)?.values;
    if (this.order === "ends" && values) {
      const known = this.rows.filter(i => values[i] != null), half = Math.min(PAGE / 2, Math.ceil(known.length / 2));
      this.grid.className = "grid ends";
      this.grid.replaceChildren(list(known.slice(-half).reverse(), `Lowest ${this.sort}`), list(known.slice(0, half), `Highest ${this.sort}`));
      this.more.replaceChildren();
      return;
    }
    this.grid.className = "grid";
    const pages = Math.max(1, Math.ceil(this.rows.length / PAGE));
    this.grid.replaceChildren(list(this.rows.slice(this.page * PAGE, (this.page + 1) * PAGE)));
    const step = by => make("button", { type: "button", disabled: this.page + by < 0 || this.page + by >= pages,
      onclick: () => { this.page += by; this.fill(); } }, by < 0 ? "Previous" : "Next");
    this.more.replaceChildren(...(pages > 1 ? [step(-1), `Page ${this.page + 1} of ${pages}`, step(1)] : []));
  }

  show(i) {
    const rows = [["group", this.all.groups[i] || "–"], ...[...this.classes.keys()].map(name => [name, this.className(name, i)]),
      ...[...this.numbers.values()].map(one => [one.name, text(one.values[i])])];
    const space = this.all.spaces.find(one => one.has(i)), map = this.all.maps?.[i];
    this.card.replaceChildren(make("h4", {}, this.all.ids[i]), ...(this.all.images ? [this.image(i, 128)] : []),
      ...(map ? [make("img", { src: map.source, alt: map.words, width: 128, height: 128 }), make("p", { class: "soft" }, map.words)] : []),
      make("dl", {}, ...rows.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value)))),
      ...(space ? [make("button", { type: "button", onclick: () => space.near(i) }, "Its nearest patches")] : []));
  }

  /* -- from the tables of the section -- */

  link(table) {
    const heads = [...table.tHead.rows[0].cells].map(head => head.firstChild.textContent.trim().toLowerCase());
    for (const row of table.tBodies[0].rows) {
      const found = [];
      [...row.cells].forEach((cell, k) => {
        const words = (cell.firstChild?.textContent ?? "").trim();
        const code = this.classes.get(heads[k])?.names.indexOf(words) ?? -1;
        if (code >= 0) found.push(() => this.chooseClass(heads[k], code, true));
        const concept = words.replace(/ \(.*\)$/, "");
        const number = ["concept", "what"].includes(heads[k]) && [`residual of ${concept}`, concept].find(name => this.numbers.has(name));
        if (number) found.push(() => this.sortBy(number, "ends"));
      });
      if (found.length) row.cells[0].append(" ", make("button", { type: "button", class: "link", "aria-label": `Show the patches of ${row.cells[0].textContent.trim()}`, onclick: () => {
        this.filters.clear();
        for (const act of found) act();
        this.root.scrollIntoView();
      } }, "patches"));
    }
  }
}

document.addEventListener("DOMContentLoaded", () => {
  for (const box of document.querySelectorAll(".table")) setUpTable(box);
  for (const figure of document.querySelectorAll("figure[data-name]")) setUpFigure(figure);
  for (const nav of document.querySelectorAll("nav.contents")) setUpContents(nav);
  for (const root of document.querySelectorAll(".browser")) {
    const browser = new Browser(root);
    for (const table of root.closest("section").querySelectorAll(".table table")) browser.link(table);
  }
});

"""Checks the claims of a report against its run folders."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from conceptkit.options.base import Notify, Progress
from conceptkit.options.report import Verify
from conceptkit.report.claims import Checked, verify_claims


@dataclass(frozen=True, kw_only=True)
class Verified:
    """Every claim of a report, and whether it holds."""

    path: str
    claims: tuple[Checked, ...]

    @property
    def is_usable(self) -> bool:
        """Return whether every claim holds; the exit code is 1 otherwise."""
        return all(claim.holds for claim in self.claims)

    def to_dict(self) -> dict[str, Any]:
        """Return what ``--json`` writes."""
        claims = [asdict(claim) for claim in self.claims]
        return {"schema": "conceptkit/verify/1", "path": self.path, "holds": self.is_usable, "claims": claims}


def verify(options: Verify, *, progress: Progress | None = None, notify: Notify | None = None) -> Verified:
    """Check the claims of a report."""
    return Verified(path=str(options.report), claims=tuple(verify_claims(Path(options.report))))

"""Records in, one offline HTML page out: tables, figures and plain sentences, without a model or a slide."""

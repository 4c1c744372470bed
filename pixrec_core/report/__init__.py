"""The evaluation report: one self-contained HTML page, and its headline tables in Markdown."""

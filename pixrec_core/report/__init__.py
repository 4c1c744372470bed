"""The evaluation report: one self-contained HTML page, and its main tables in Markdown."""

"""Results to Markdown: one function per block of README and docs."""

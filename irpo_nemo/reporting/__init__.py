"""What a run has shown: results.json, tables on the terminal, and a page with its charts and its problems."""

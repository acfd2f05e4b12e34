"""One module per job; each reads top to bottom as the story of that job."""

"""Network, trained filters, and export."""

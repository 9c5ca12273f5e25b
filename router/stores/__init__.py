"""Where records, money and labels are kept."""

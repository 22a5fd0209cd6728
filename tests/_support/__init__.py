"""What tests share: problems, comparisons, small networks, records."""

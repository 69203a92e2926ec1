"""What models read: documents of one's own, items with a known answer."""

"""Starting experiments on clusters: programs for a checkout, not part of the installed package."""

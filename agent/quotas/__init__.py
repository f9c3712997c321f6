"""The quota document at the node: checked, stored, audited, answered."""

"""Drawing: what the pages of `report` and `compare` share."""

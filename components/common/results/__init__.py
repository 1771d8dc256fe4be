"""Results: the files that stages write of them, and how they are counted; a module each."""

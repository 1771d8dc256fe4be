#!/bin/sh
# Compile a folder of Python for good: the files are never checked against their source, nor written again.
exec python3 -m compileall -q -j 0 --invalidation-mode unchecked-hash "$1"

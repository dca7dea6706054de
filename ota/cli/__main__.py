"""``python -m ota.cli``: the same as ``edgekit-fleet``."""

from ota.cli.entry import main

main()

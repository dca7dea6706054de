"""Model families: from ``config.json`` to one architecture description. No I/O."""

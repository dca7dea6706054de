"""``python -m edgekit``."""

try:
    from edgekit.cli.entry import main
except KeyboardInterrupt:
    raise SystemExit(130) from None

if __name__ == "__main__":
    main()

"""`python -m bridge` is `whatsapp2mqtt`."""

from bridge.cli import main

if __name__ == "__main__":
    main()

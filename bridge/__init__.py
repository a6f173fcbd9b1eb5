"""whatsapp2mqtt: WhatsApp Business callbacks in by HTTP, MQTT topics out, nothing lost between."""

import sys

__version__ = "0.1.0"

# structlog loads rich wherever it is installed, which costs each process 5 MB and never prints a line here. Only
# cli/show.py wants it, and takes this away again.
sys.modules.setdefault("rich", None)  # type: ignore[arg-type]  # None: whoever imports it is told that it is missing

"""whatsapp2mqtt: WhatsApp Business callbacks in by HTTP, MQTT topics out, nothing lost between."""

__version__ = "0.1.0"

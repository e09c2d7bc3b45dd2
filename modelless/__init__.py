"""modelless: managed and model-less inference serving over Apache Kafka."""

__version__ = "0.1.0"

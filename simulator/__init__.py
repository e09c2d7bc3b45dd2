"""The system in virtual time: its own pure modules and its rivals, against recorded profiles and arrivals."""

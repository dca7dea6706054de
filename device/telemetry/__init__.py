"""Sees what the device does, decides alarms, and keeps both until the cloud has stored them."""

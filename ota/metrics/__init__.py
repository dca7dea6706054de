"""From the store to Prometheus: samples by remote write, what only the cloud knows by scraping."""

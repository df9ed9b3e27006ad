"""What mitmproxy and mitmweb show of the cluster beside the flows: content views, commands, how much is kept."""

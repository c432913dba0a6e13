"""Slack: what is sent through the webhook, and what comes back when a button is pressed. Decides nothing itself."""

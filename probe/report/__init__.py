"""Findings become HTML, Markdown, JSON, tables and figures; nothing else is read."""

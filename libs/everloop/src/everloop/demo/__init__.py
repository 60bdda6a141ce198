"""The demo: a year of flights goes once round the whole loop."""

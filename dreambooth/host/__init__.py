"""What runs inside the WebUI's process: it draws the tab, answers the REST routes, starts and watches runs."""

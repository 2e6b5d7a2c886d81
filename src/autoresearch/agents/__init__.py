"""What an outside agent uses: one trial of the edits in the working tree (`try`) and the MCP server."""

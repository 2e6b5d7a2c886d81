"""Whatever proposes a change; `registry.RESEARCHERS` names them, and each is imported only when chosen."""

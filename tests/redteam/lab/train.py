"""The honest baseline of the cheats."""

import honest

honest.main()

"""Half the rows for each pass, and four passes for each step."""

import base

base.DEVICE_BATCH_SIZE //= 2
base.TOTAL_BATCH_SIZE *= 2

build = base.build
if __name__ == "__main__":
    base.main()

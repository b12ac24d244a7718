"""The chunked algorithms that generated code calls, one file each, with its formula on top."""

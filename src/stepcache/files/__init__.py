"""Files: read with everything checked, written whole or not at all, appended to by one process at a time.

reading.py reads text and JSON; replacing.py writes a file in one piece; lines.py adds lines to one; locks.py lets one
process in; owners.py says who else may write. Nothing here knows what the files are for.
"""

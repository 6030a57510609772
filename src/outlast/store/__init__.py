"""Where runs are kept: the Store protocol, and its implementations. It never decides, makes no ids, reads no clock."""

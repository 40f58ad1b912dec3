"""The laws: one `test_<chapter>.py` per chapter. Helpers that several chapters use are in modules without tests."""

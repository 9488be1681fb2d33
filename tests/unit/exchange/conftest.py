import sys
from pathlib import Path

from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))  # for layouts.py

settings.register_profile("no_deadline", deadline=None)
settings.load_profile("no_deadline")

"""Reports: a finished check as files (`bundle`), as tables (`table`), and as one self-contained page (`html`)."""

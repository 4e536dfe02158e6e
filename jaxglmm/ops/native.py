"""placeholder"""
def native_status(): return "not built yet"

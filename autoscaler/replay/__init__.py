"""The same recommend and guard code over recorded history."""

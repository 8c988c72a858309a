"""What programs show: tables, pictures, statistics."""

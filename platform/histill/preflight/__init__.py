"""The probe before a long run: what every node has and reaches, as rows that are green or red."""

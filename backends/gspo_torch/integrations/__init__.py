"""The losses of this package inside trainers that others wrote; one file per trainer, nothing imported before it is asked for."""

-- Returns a job.
return record(ARGV[1])

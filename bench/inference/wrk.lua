-- Posts the first file that is named behind `--` to the paths named after it, in turn.
-- Reports `seen <requests> <microseconds> <errors>` and a line `<latency in microseconds> <count>` for each latency.

function init(arguments)
  local file = assert(io.open(arguments[1], "rb"))
  wrk.method = "POST"
  wrk.headers["Content-Type"] = "application/json"
  wrk.body = file:read("*a")
  file:close()
  wrk.path = arguments[2]
  if #arguments > 2 then
    local requests, last = {}, 0
    for index = 2, #arguments do
      requests[index - 1] = wrk.format(nil, arguments[index])
    end
    -- Only where it is needed: a request that Lua makes costs the client more than one that is always the same.
    request = function()
      last = last % #requests + 1
      return requests[last]
    end
  end
end

function done(summary, latency)
  local errors = summary.errors
  local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
  io.write(string.format("seen %d %d %d\n", summary.requests, summary.duration, failed))
  for index = 1, #latency do
    io.write(string.format("%d %d\n", latency(index)))
  end
end

defmodule VLLM.Pool do
  @moduledoc """
  Owns the port to the pool: one for the VM, opened by the first call.

  Calls of any number of processes are open on it at the same time. When the port exits, the calls
  that it had taken fail with `:pool_lost`, a new port is opened, models that were held are loaded
  again before the next call to them, and calls that were not sent yet go to the new one. When this
  VM ends, in whatever way, the pool ends with it.

  A call belongs to the process that makes it: when that dies, the request leaves the engine.
  """
  use GenServer
  require Logger

  alias VLLM.{Config, Error, Msgpack, Wire}

  @window 256
  @greeting_ms 60_000
  @grace_ms 2_000
  @first_pause 20
  @longest_pause 5_000

  defmodule Request do
    @moduledoc false
    @enforce_keys [:model, :verb, :payload, :timeout]
    defstruct [
      :model,
      :verb,
      :payload,
      :timeout,
      window: 0,
      priority: 0,
      request_id: "",
      retry: "",
      session: "",
      affinity: "",
      ttl_ms: 0,
      hold: false
    ]
  end

  defmodule Call do
    @moduledoc false
    defstruct [:request, :owner, :monitor, :timer, :deadline, :id]
  end

  defstruct port: nil,
            phase: :down,
            epoch: nil,
            opened: 0,
            next_id: 1,
            pause: @first_pause,
            failing_since: nil,
            calls: %{},
            ids: %{},
            waiting: [],
            held: %{}

  # Clients.

  def start_link(_), do: GenServer.start_link(__MODULE__, [], name: __MODULE__)

  @doc "Make a call and wait for its result: `{:ok, value}` or `{:error, error}`."
  def call(model, verb, args, opts \\ []),
    do: request(model, verb, args, opts) |> submit() |> await()

  @doc "Call a verb of the pool itself: `status`, `unload`, …"
  def control(verb, args \\ %{}, timeout \\ 60_000), do: call("", verb, args, timeout: timeout)

  @doc "Build a request; raises VLLM.Error where the arguments cannot travel."
  def request(model, verb, args, opts) do
    %Request{
      model: model,
      verb: verb,
      payload: Msgpack.pack!(args),
      timeout: opts[:timeout] || 600_000,
      window: if(opts[:stream], do: @window, else: 0),
      priority: opts[:priority] || 0,
      request_id: opts[:request_id] || Base.encode16(:crypto.strong_rand_bytes(6), case: :lower),
      retry: to_string(opts[:retry] || ""),
      session: opts[:session] || "",
      affinity: opts[:affinity] || "",
      ttl_ms: opts[:ttl_ms] || 0,
      hold: opts[:hold] || false
    }
  end

  @doc "Send a request; its events come to this process as `{ref, event}`."
  def submit(%Request{} = request) do
    ref = Process.monitor(__MODULE__)
    GenServer.cast(__MODULE__, {:submit, ref, self(), request})
    ref
  end

  @doc "Wait for the end of a request."
  def await(ref) do
    case next(ref) do
      {:item, _} -> await(ref)
      {:done, value} -> {:ok, value}
      {:failed, error} -> {:error, error}
    end
  end

  @doc "Wait for the next event: `{:item, value}`, `{:done, value}` or `{:failed, error}`."
  def next(ref), do: %{ref => nil} |> next_of() |> elem(1)

  @doc "Wait for the next event of any of the requests that are the keys of a map."
  def next_of(refs) do
    receive do
      {ref, {:item, _} = event} when is_map_key(refs, ref) ->
        {ref, event}

      {ref, event} when is_map_key(refs, ref) ->
        Process.demonitor(ref, [:flush])
        {ref, event}

      {:DOWN, ref, _, _, reason} when is_map_key(refs, ref) ->
        {ref, {:failed, lost("the process that owns the port ended: #{inspect(reason)}")}}
    end
  end

  @doc "Give a request up and forget it."
  def cancel(ref) do
    GenServer.cast(__MODULE__, {:cancel, ref})
    Process.demonitor(ref, [:flush])
    flush(ref)
  end

  @doc "The items of a streamed request; the enumeration raises VLLM.Error, leaving it cancels."
  def stream(build) do
    Stream.resource(
      fn -> {submit(build.()), 0, :open} end,
      fn
        {_, _, :ended} = state -> {:halt, state}
        {ref, read, :open} -> step(ref, read)
      end,
      fn
        {ref, _, :open} -> cancel(ref)
        _ -> :ok
      end
    )
  end

  @doc "Open the port, unless it is, and wait until the pool answers."
  def ensure(timeout) do
    with {:ok, _} <- control("status", %{}, timeout), do: :ok
  end

  @doc "Close the port, and with it the pool; wait until the port's process is gone."
  def close(timeout \\ 15_000), do: GenServer.call(__MODULE__, {:close, timeout}, :infinity)

  @doc "Give back a model that calls with `hold: true` loaded."
  def release(name), do: GenServer.call(__MODULE__, {:release, name})

  @doc "The names of the models that are held."
  def held, do: GenServer.call(__MODULE__, :held)

  @doc "The port's process, for those who watch it, and the run of the supervisor: both may be nil."
  def info, do: GenServer.call(__MODULE__, :info)

  defp step(ref, read) do
    case next(ref) do
      {:item, value} when read + 1 >= div(@window, 2) ->
        GenServer.cast(__MODULE__, {:credit, ref, read + 1})
        {[value], {ref, 0, :open}}

      {:item, value} ->
        {[value], {ref, read + 1, :open}}

      {:done, value} ->
        {[{:summary, value}], {ref, 0, :ended}}

      {:failed, error} ->
        raise error
    end
  end

  defp flush(ref) do
    receive do
      {^ref, _} -> flush(ref)
    after
      0 -> :ok
    end
  end

  # The server.

  @impl true
  def init(_), do: {:ok, %__MODULE__{}}

  @impl true
  def handle_cast({:submit, ref, owner, request}, state) do
    deadline = deadline(request.timeout)

    timer =
      unless deadline == :infinity,
        do: Process.send_after(self(), {:late, ref}, request.timeout + @grace_ms)

    monitor = if owner != self(), do: Process.monitor(owner)
    call = %Call{request: request, owner: owner, monitor: monitor, timer: timer, deadline: deadline}

    if Config.verbose?(),
      do: Logger.info("vllm: #{request.verb} #{request.model} #{request.request_id}")

    state = %{state | calls: Map.put(state.calls, ref, call), waiting: state.waiting ++ [ref]}
    {:noreply, state |> open() |> send_waiting()}
  end

  def handle_cast({:cancel, ref}, state), do: {:noreply, give_up(state, ref)}

  def handle_cast({:credit, ref, room}, state) do
    case state.calls do
      %{^ref => %Call{id: id}} when id != nil ->
        {:noreply, say(state, {:credit, %{id: id, room: room}})}

      _ ->
        {:noreply, state}
    end
  end

  @impl true
  def handle_call(:info, _, state) do
    os_pid = state.port && elem(Port.info(state.port, :os_pid) || {:os_pid, nil}, 1)
    {:reply, %{os_pid: os_pid, epoch: state.epoch, phase: state.phase}, state}
  end

  def handle_call(:held, _, state), do: {:reply, Map.keys(state.held), state}

  def handle_call({:release, name}, _, state) do
    case state.held do
      %{^name => %{holders: 1} = held} ->
        state = %{state | held: Map.delete(state.held, name)}
        {:reply, :ok, if(held.opened == state.opened, do: release_lease(state, name), else: state)}

      %{^name => %{holders: n}} ->
        {:reply, :ok, put_in(state.held[name].holders, n - 1)}

      _ ->
        {:reply, :ok, state}
    end
  end

  def handle_call({:close, timeout}, _, %{port: port} = state) when port != nil do
    {:os_pid, os_pid} = Port.info(port, :os_pid) || {:os_pid, nil}
    close_port(port)
    wait_gone(os_pid, System.monotonic_time(:millisecond) + timeout)
    state = %{state | port: nil, phase: :down, epoch: nil, held: %{}}
    error = %Error{code: :pool_closed, message: "the pool was closed"}
    {:reply, :ok, fail_all(state, fn _ -> true end, error)}
  end

  def handle_call({:close, _}, _, state), do: {:reply, :ok, %{state | phase: :down, held: %{}}}

  @impl true
  def handle_info({port, {:data, packet}}, %{port: port} = state) do
    with {:ok, frames} <- Wire.frames(packet),
         {:ok, message, payload, buffers} <- Wire.decode(frames),
         {:ok, value} <- Msgpack.unpack(payload, buffers) do
      {:noreply, take(message, value, state)}
    else
      {:error, reason} ->
        error = %Error{
          code: :protocol_error,
          message: "the port sent what is no message: #{reason}"
        }

        {:noreply, hang_up(state, error)}
    end
  end

  def handle_info({port, {:exit_status, status}}, %{port: port} = state) do
    {:noreply, port_gone(state, lost("the port ended with status #{status}"))}
  end

  def handle_info({:late, ref}, state) do
    error = %Error{
      code: :deadline_exceeded,
      message: "the deadline passed and the pool said nothing",
      phase: "connect"
    }

    {:noreply, finish(state, ref, {:failed, error})}
  end

  def handle_info({:silent, opened}, %{opened: opened, phase: :greeting} = state) do
    error = %Error{code: :connect_failed, message: "the port said nothing", retryable: true}
    {:noreply, hang_up(state, error)}
  end

  def handle_info(:reopen, %{phase: :pausing} = state),
    do: {:noreply, open(%{state | phase: :down})}

  def handle_info({:DOWN, monitor, :process, _, _}, state) do
    case Enum.find(state.calls, fn {_, call} -> call.monitor == monitor end) do
      {ref, _} -> {:noreply, give_up(state, ref)}
      nil -> {:noreply, state}
    end
  end

  # What came of loading a model again after the port was lost; see `reload`.
  def handle_info({ref, event}, state) when is_reference(ref),
    do: {:noreply, reloaded(state, ref, event)}

  def handle_info(_, state), do: {:noreply, state}

  # The port.

  defp open(%{phase: :down} = state) do
    case Config.port_command() do
      {:ok, {path, args}} ->
        options = [:binary, :exit_status, packet: 4, args: args, env: Config.port_env()]
        port = Port.open({:spawn_executable, path}, options)
        opened = state.opened + 1
        Process.send_after(self(), {:silent, opened}, @greeting_ms)

        hello = %{
          versions: [1],
          product: to_string(Application.spec(:vllm, :vsn)),
          pid: String.to_integer(System.pid()),
          name: Config.client_name()
        }

        say(
          %{state | port: port, phase: :greeting, opened: opened, next_id: 1},
          {:hello, hello}
        )

      {:error, error} ->
        fail_all(state, fn _ -> true end, error)
    end
  end

  defp open(state), do: state

  defp say(%{port: nil} = state, _), do: state

  defp say(state, message, packed \\ {<<0xC0>>, []}) do
    Port.command(state.port, message |> Wire.encode(packed) |> Wire.packet())
    state
  rescue
    ArgumentError -> state
  end

  defp hang_up(state, error) do
    close_port(state.port)
    port_gone(state, error)
  end

  defp close_port(port) do
    Port.close(port)
  rescue
    ArgumentError -> true
  end

  defp port_gone(%{phase: phase} = state, error) do
    if phase == :ready, do: Logger.warning("vllm: #{Exception.message(error)}")
    sent? = fn call -> call.id != nil end
    state = %{state | port: nil, phase: :down, epoch: nil, ids: %{}}
    state = fail_all(state, sent?, error)

    cond do
      phase == :ready and error.code == :pool_lost -> reopen(fresh(state))
      error.code == :connect_failed and not out_of_patience?(state) -> reopen(state)
      true -> fail_all(%{state | failing_since: nil}, fn _ -> true end, error)
    end
  end

  # Nobody is there yet, or not any more: the one who serves may be starting.
  defp out_of_patience?(%{failing_since: nil}), do: false

  defp out_of_patience?(%{failing_since: since}),
    do: System.monotonic_time(:millisecond) - since > Config.patience()

  defp reopen(state) do
    Process.send_after(self(), :reopen, state.pause)
    since = state.failing_since || System.monotonic_time(:millisecond)
    %{state | phase: :pausing, pause: min(2 * state.pause, @longest_pause), failing_since: since}
  end

  defp fresh(state), do: %{state | pause: @first_pause, failing_since: nil}
  defp lost(message), do: %Error{code: :pool_lost, message: message, retryable: true}

  # Messages.

  defp take({:welcome, fields}, _, state) do
    send_waiting(%{
      state
      | phase: :ready,
        epoch: fields.epoch,
        failing_since: nil,
        pause: @first_pause
    })
  end

  defp take({:items, %{entries: entries}}, values, state), do: each(state, entries, values, :item)
  defp take({:end, %{entries: entries}}, values, state), do: each(state, entries, values, :done)
  defp take({:result, %{id: id}}, value, state), do: event(state, id, {:done, value})

  # No call is meant: the connection is refused, or at its end.
  defp take({:error, %{id: 0} = fields}, details, state),
    do: hang_up(state, Error.from_wire(fields, details))

  defp take({:error, %{id: id} = fields}, details, state),
    do: event(state, id, {:failed, Error.from_wire(fields, details)})

  defp take({:bye, %{reason: reason}}, _, state),
    do: hang_up(state, lost("the supervisor left: #{reason}"))

  defp take(_, _, state), do: state

  defp each(state, entries, values, what) when length(entries) == length(values) do
    entries
    |> Enum.zip(values)
    |> Enum.reduce(state, fn {[id, _], value}, state -> event(state, id, {what, value}) end)
  end

  defp each(state, _, _, _), do: state

  defp event(state, id, event) do
    case {state.ids, event} do
      {%{^id => ref}, {:item, _}} ->
        send(state.calls[ref].owner, {ref, event})
        state

      {%{^id => ref}, _} ->
        finish(state, ref, event)

      _ ->
        state
    end
  end

  # Calls.

  defp send_waiting(%{phase: :ready} = state) do
    {ready, waiting} = Enum.split_with(state.waiting, &held?(state, state.calls[&1]))
    state = Enum.reduce(ready, %{state | waiting: waiting}, &send_call(&2, &1))

    waiting
    |> Enum.map(&state.calls[&1].request.model)
    |> Enum.uniq()
    |> Enum.reduce(state, &reload(&2, &1))
  end

  defp send_waiting(state), do: state

  defp held?(state, %Call{request: %{model: model}}) do
    case state.held do
      %{^model => held} -> held.opened == state.opened
      _ -> true
    end
  end

  defp send_call(state, ref) do
    call = state.calls[ref]
    request = call.request
    id = state.next_id

    header = %{
      id: id,
      model: request.model,
      verb: request.verb,
      remaining_ms: Wire.budget(left(call.deadline)),
      window: request.window,
      priority: request.priority,
      request_id: request.request_id,
      retry: request.retry,
      session: request.session,
      affinity: request.affinity,
      ttl_ms: request.ttl_ms
    }

    state = %{
      state
      | next_id: id + 1,
        ids: Map.put(state.ids, id, ref),
        calls: Map.put(state.calls, ref, %{call | id: id})
    }

    say(state, {:call, header}, request.payload)
  end

  # A lease ends with its connection: load again, once, before the next call to the model.
  defp reload(state, model) do
    case state.held[model] do
      %{loading: nil} = held ->
        ref = make_ref()
        call = %Call{request: held.request, owner: self(), deadline: :infinity}

        state = %{
          state
          | calls: Map.put(state.calls, ref, call),
            held: Map.put(state.held, model, %{held | loading: ref})
        }

        send_call(state, ref)

      _ ->
        state
    end
  end

  defp reloaded(state, ref, event) do
    case {Enum.find(state.held, fn {_, held} -> held.loading == ref end), event} do
      {{model, held}, {:done, _}} ->
        send_waiting(put_in(state.held[model], %{held | loading: nil, opened: state.opened}))

      {{model, held}, {:failed, error}} ->
        state = put_in(state.held[model], %{held | loading: nil})

        if error.code == :pool_lost,
          do: state,
          else: fail_all(state, &(&1.request.model == model), error)

      _ ->
        state
    end
  end

  defp finish(state, ref, event) do
    case Map.pop(state.calls, ref) do
      {nil, _} ->
        state

      {call, calls} ->
        if call.timer, do: Process.cancel_timer(call.timer)
        if call.monitor, do: Process.demonitor(call.monitor, [:flush])
        send(call.owner, {ref, event})

        state = %{
          state
          | calls: calls,
            ids: Map.delete(state.ids, call.id),
            waiting: List.delete(state.waiting, ref)
        }

        if call.request.hold and match?({:done, _}, event),
          do: hold(state, call.request, event),
          else: state
    end
  end

  # Each model is held with one lease, whatever the number of those who loaded it.
  defp hold(state, request, {:done, %{"name" => name}}) do
    case state.held do
      %{^name => %{opened: opened} = held} when opened == state.opened ->
        release_lease(put_in(state.held[name], %{held | holders: held.holders + 1}), name)

      %{^name => held} ->
        put_in(state.held[name], %{held | holders: held.holders + 1, opened: state.opened})

      _ ->
        put_in(state.held[name], %{
          request: %{request | hold: false},
          opened: state.opened,
          holders: 1,
          loading: nil
        })
    end
  end

  defp release_lease(state, name) do
    ref = make_ref()

    request = %Request{
      model: "",
      verb: "release",
      payload: Msgpack.pack!(%{"name" => name}),
      timeout: :infinity
    }

    call = %Call{request: request, owner: self(), deadline: :infinity}
    send_call(%{state | calls: Map.put(state.calls, ref, call)}, ref)
  end

  defp give_up(state, ref) do
    case Map.pop(state.calls, ref) do
      {nil, _} ->
        state

      {call, calls} ->
        if call.timer, do: Process.cancel_timer(call.timer)
        if call.monitor, do: Process.demonitor(call.monitor, [:flush])

        state = %{
          state
          | calls: calls,
            ids: Map.delete(state.ids, call.id),
            waiting: List.delete(state.waiting, ref)
        }

        if call.id, do: say(state, {:cancel, %{id: call.id}}), else: state
    end
  end

  defp fail_all(state, which, error) do
    refs = for {ref, call} <- state.calls, which.(call), do: ref
    Enum.reduce(refs, state, &finish(&2, &1, {:failed, error}))
  end

  defp deadline(:infinity), do: :infinity
  defp deadline(ms), do: System.monotonic_time(:millisecond) + ms
  defp left(:infinity), do: :infinity
  defp left(deadline), do: deadline - System.monotonic_time(:millisecond)

  defp wait_gone(nil, _), do: :ok

  defp wait_gone(os_pid, deadline) do
    if File.exists?("/proc/#{os_pid}") and System.monotonic_time(:millisecond) < deadline do
      Process.sleep(10)
      wait_gone(os_pid, deadline)
    end
  end
end

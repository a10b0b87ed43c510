defmodule VLLM.Runtime do
  @moduledoc """
  Universal calls: any documented object of vLLM, used in the worker where it lives.

      llm = VLLM.llm!("tiny")
      {:ok, params} = VLLM.Runtime.call(llm, "vllm", "SamplingParams", [], max_tokens: 8)
      {:ok, 8} = VLLM.Runtime.attr(params, "max_tokens")
      {:ok, copy} = VLLM.Runtime.method(params, "clone")
      :ok = VLLM.Runtime.release([params, copy])

  Results that can travel are values, others `VLLM.Ref`s. The last argument of each function are
  options: `:timeout` in ms, `:session` (a name; all processes of this VM share the session of one
  name), `:affinity` (`:hint`, `:strict_queue` or `:strict_fail_fast`), and `:ttl` in ms, with which a
  session is shared with other clients of the same user and outlives the port. A ref brings the
  session of the call it came from. Names that are not on the allow-list are `:not_allowed`; when the
  worker of a ref is gone its calls fail with `:session_lost` until `end_session/2`.
  """

  alias VLLM.{Arguments, Config, Error, LLM, Pool, Ref}

  @doc "Call a function, a class or a method of a class: `call(llm, \"vllm\", \"SamplingParams\", [], n: 2)`."
  def call(%LLM{} = llm, module, name, args \\ [], kwargs \\ [], opts \\ []),
    do: run("ffi.call", target(module, name, args, kwargs), scope(llm, opts), opts)

  @doc "The value of a name in a module."
  def get(%LLM{} = llm, module, name, opts \\ []),
    do: run("ffi.get", %{"module" => module, "name" => to_string(name)}, scope(llm, opts), opts)

  @doc "What an iterator or a generator in the worker gives: a Stream; leaving it early ends the call."
  def stream(%LLM{} = llm, module, name, args \\ [], kwargs \\ [], opts \\ []),
    do: items("ffi.call", target(module, name, args, kwargs), scope(llm, opts), opts)

  @doc "An attribute of an object; `name` may have dots."
  def attr(%Ref{} = ref, name, opts \\ []),
    do: on(ref, "ffi.attr", %{"name" => to_string(name)}, opts)

  @doc "Set an attribute: `{:ok, true}`."
  def set_attr(%Ref{} = ref, name, value, opts \\ []) do
    args = %{"name" => to_string(name), "value" => Arguments.plain(value)}
    on(ref, "ffi.set_attr", args, opts)
  end

  @doc "Call a method of an object."
  def method(%Ref{} = ref, name, args \\ [], kwargs \\ [], opts \\ []),
    do: on(ref, "ffi.method", given(name, args, kwargs), opts)

  @doc "Call a method that gives an iterator: a Stream of its items."
  def stream_method(%Ref{} = ref, name, args \\ [], kwargs \\ [], opts \\ []),
    do: items("ffi.method", Map.put(given(name, args, kwargs), "ref", ref), ref.scope, opts)

  @doc "`object[key]`."
  def item(%Ref{} = ref, key, opts \\ []), do: on(ref, "ffi.item", %{"key" => key}, opts)

  @doc "The items of an object: a Stream."
  def iterate(%Ref{} = ref, opts \\ []), do: items("ffi.iterate", %{"ref" => ref}, ref.scope, opts)

  @doc "Let go of objects; a second time does nothing."
  def release(refs, opts \\ []) do
    refs
    |> List.wrap()
    |> Enum.group_by(& &1.scope)
    |> Enum.reduce_while(:ok, fn {scope, refs}, :ok ->
      case run("ffi.release", %{"refs" => Enum.map(refs, & &1.number)}, scope, opts) do
        {:ok, _} -> {:cont, :ok}
        {:error, %Error{code: :session_lost}} -> {:cont, :ok}
        error -> {:halt, error}
      end
    end)
  end

  @doc "End a session: everything it holds is let go, and the next call begins a new one."
  def end_session(%LLM{} = llm, opts \\ []) do
    with {:ok, _} <- run("ffi.end", %{}, scope(llm, opts), opts), do: :ok
  end

  defp target(module, name, args, kwargs), do: Map.put(given(name, args, kwargs), "module", module)

  defp given(name, args, kwargs) do
    %{
      "name" => to_string(name),
      "args" => Enum.map(args, &Arguments.plain/1),
      "kwargs" => kwargs |> Map.new() |> Arguments.plain()
    }
  end

  defp scope(%LLM{name: model}, opts) do
    %{
      model: model,
      session: to_string(opts[:session] || ""),
      affinity: to_string(opts[:affinity] || :hint),
      ttl_ms: opts[:ttl] || 0
    }
  end

  defp on(%Ref{scope: nil} = ref, _, _, _),
    do: {:error, Error.invalid(:ref, ref, "this ref did not come from a call")}

  defp on(%Ref{} = ref, verb, args, opts), do: run(verb, Map.put(args, "ref", ref), ref.scope, opts)

  defp run(verb, args, scope, opts) do
    case Pool.call(scope.model, verb, args, options(scope, opts)) do
      {:ok, value} -> {:ok, adopt(value, scope)}
      {:error, error} -> {:error, error}
    end
  rescue
    error in Error -> {:error, error}
  end

  defp items(verb, args, scope, opts) do
    fn -> Pool.request(scope.model, verb, args, [{:stream, true} | options(scope, opts)]) end
    |> Pool.stream()
    |> Stream.flat_map(fn
      {:summary, _} -> []
      value -> [adopt(value, scope)]
    end)
  end

  defp options(scope, opts) do
    timeout = Config.timeout(Keyword.take(opts, [:timeout, :timeout_profile]), :ml_inference)
    [timeout: timeout] ++ Map.to_list(Map.delete(scope, :model))
  end

  # A ref knows which session it came by.
  defp adopt(%Ref{} = ref, scope), do: %{ref | scope: scope}
  defp adopt(%_{} = value, _), do: value
  defp adopt(list, scope) when is_list(list), do: Enum.map(list, &adopt(&1, scope))
  defp adopt(map, scope) when is_map(map), do: Map.new(map, fn {k, v} -> {k, adopt(v, scope)} end)

  defp adopt(tuple, scope) when is_tuple(tuple),
    do: tuple |> Tuple.to_list() |> adopt(scope) |> List.to_tuple()

  defp adopt(value, _), do: value
end

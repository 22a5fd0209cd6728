// The backward of project: one read of the map and of its result's gradient G.
//
// With dP = G values^T: dS = P * (dP - rowsum(P * dP)), dx = [G if the residual is x] + dS keys,
// dkeys = dS^T x, dvalues = P^T G, dbias = column sums of dS.

template <class N>
struct ProjectBackwardPlan {
  using Acc = typename N::Acc;
  const Split& split;
  Sink<Acc> dkeys, dvalues, dbias;

  ProjectBackwardPlan(const Call& call, const Split& split, Arena& arena)
      : split(split),
        dkeys(call.dkeys, call.keys.shared, call.heads * call.tokens * call.channels, split, arena),
        dvalues(call.dvalues, call.values.shared, call.tokens * call.out_channels, split, arena),
        dbias(call.dbias, call.bias.shared, call.heads * call.tokens, split, arena) {}

  void finish(const Host& host, int64_t threads) const {
    dkeys.sum_up(split, host, threads);
    dvalues.sum_up(split, host, threads);
    dbias.sum_up(split, host, threads);
  }
};

// The projecting half of a backward: a Projector, and the sums of its operands' gradients.
template <class N, bool pixels_innermost>
struct ProjectorBackward {
  using Acc = typename N::Acc;
  using Elem = typename N::Elem;
  const Call& call;
  const ProjectBackwardPlan<N>& plan;
  Projector<N, pixels_innermost> projector;
  int64_t heads, L, part;
  Weights<N, pixels_innermost> grads;  // dP, then dS
  Sums<N, pixels_innermost> dkeys, dvalues;
  Acc* dbias = nullptr;
  bool fresh_bias = true;

  ProjectorBackward(const Call& call, const ProjectBackwardPlan<N>& plan, Arena& arena)
      : call(call),
        plan(plan),
        projector(call, true, arena),
        heads(call.heads),
        L(call.tokens),
        part(projector.part),
        grads(1, heads * L, true, arena) {
    if (call.dkeys) dkeys = Sums<N, pixels_innermost>(1, heads * L, call.channels, arena);
    if (call.dvalues) dvalues = Sums<N, pixels_innermost>(heads, L, part, arena);
    if (call.dbias) dbias = arena.take<Acc>(heads * L);
  }

  // dS of a tile, from its P, its pixels x and the gradient G of its results; adds to the operands'
  // gradients.
  void add(PixelRange range, View<const Elem> x, View<const Elem> grad, int64_t ahead, int64_t grad_ahead) {
    const int64_t n = range.count;
    for (int64_t h = 0; h < heads; h++) {
      const View<const Elem> block = grad.template from_channel<pixels_innermost>(h * part);
      Acc* g = grads.row(h * L);
      score<N, pixels_innermost>(block, n, projector.values, h, g, projector.scratch, grad_ahead);
      fill_padding(g, L, n, (Acc)0);
      softmax_over_rows_backward(projector.weights.row(h * L), g, L, n);
      if (call.dvalues)
        dvalues.add(h, block, n, projector.weights.for_pool(h * L, L, n), nullptr, grad_ahead);
    }
    grads.round(0, heads * L, n);
    if (call.dkeys) dkeys.add(0, x, n, grads.for_pool(0, heads * L, n), nullptr, ahead);
    if (dbias)
      for (int64_t l = 0; l < heads * L; l++) {
        Vec<Acc> sum{};
        for (int64_t i = 0; i < n; i += lanes<Acc>) sum += load<Acc>(grads.row(l) + i);
        dbias[l] = (fresh_bias ? 0 : dbias[l]) + total<Acc>(sum);
      }
    dkeys.fresh = dvalues.fresh = fresh_bias = false;
  }

  // out = base + dS keys: the gradient of x in a tile.
  void grad_x(PixelRange range, View<const Elem> base, View<Elem> out, Storing storing) const {
    expand<N, pixels_innermost>(grads.for_expand(0, 0, heads * L, range.count), projector.keys, 0,
                                range.count, base, out, storing, 0);
  }

  // What belongs to one sample's chunk (shared = false), or to a whole unit.
  void emit(bool shared, int64_t unit, int64_t sample) {
    if (call.dkeys && plan.dkeys.shared == shared) {
      dkeys.emit(0, plan.dkeys.place(unit, sample), call.channels, nullptr);
      dkeys.fresh = true;
    }
    if (call.dvalues && plan.dvalues.shared == shared) {
      for (int64_t h = 0; h < heads; h++)
        dvalues.emit(h, plan.dvalues.place(unit, sample) + h * part, call.out_channels, nullptr);
      dvalues.fresh = true;
    }
    if (dbias && plan.dbias.shared == shared) {
      for (int64_t l = 0; l < heads * L; l++) plan.dbias.place(unit, sample)[l] = fresh_bias ? 0 : dbias[l];
      fresh_bias = true;
    }
  }
};

template <class N, bool pixels_innermost>
struct ProjectBackwardWorker {
  using Elem = typename N::Elem;
  const Call& call;
  const Split& split;
  TiledMap<N, pixels_innermost> x, grad, dx;
  ProjectorBackward<N, pixels_innermost> backward;
  Storing storing;

  ProjectBackwardWorker(const Call& call, const Split& split, const ProjectBackwardPlan<N>& plan,
                        Arena& arena)
      : call(call),
        split(split),
        x(call.x, Use::read, call, call.channels),
        grad(call.grad_map, Use::read, call, call.out_channels),
        dx(call.dx, Use::write, call, call.channels),
        backward(call, plan, arena),
        storing(storing_of(dx, call.channels, call, split)) {
    for (auto* each : {&x, &grad, &dx}) each->take_buffer_if_needed(arena, split.tile);
  }
  void unit(int64_t unit) {
    for_each_chunk(split, unit, [&](int64_t sample, int64_t chunk) {
      backward.projector.begin(sample);
      for_each_tile(split, unit, sample, chunk, [&](PixelRange range, Place next) {
        const View<const Elem> tile = x.read(range, nullptr), grads = grad.read(range, nullptr);
        backward.projector.attend(range, tile, x.ahead(range, next));
        backward.add(range, tile, grads, x.ahead(range, next), grad.ahead(range, next));
        if (call.dx.data) {
          backward.grad_x(range, call.residual_input ? grads : View<const Elem>{nullptr, 0}, dx.target(range),
                          storing);
          dx.write(range);
        }
      });
      backward.emit(false, unit, sample);
    });
    backward.emit(true, unit, 0);
  }
};

template <class N, bool pixels_innermost>
void project_backward(const Call& call, const Host& host) {
  const int64_t pixels = call.height * call.width, rows = call.heads * call.tokens;
  // With many rows and channels, sums of them pass through the cache with each tile: few tiles then.
  const int64_t fewest = pixels_innermost ? 128 : 64;
  const Split split =
      split_of<N, pixels_innermost>(call, call.channels + call.out_channels, 16 * rows, fewest);
  run<ProjectBackwardPlan<N>, ProjectBackwardWorker<N, pixels_innermost>>(
      call, split, 3 * call.batch * pixels * rows * (call.channels + call.out_channels), host);
}

"""Algorithm 1 of the DataRater paper (arXiv 2505.17895).

The rater phi_eta scores documents. A population of P inner models theta_1..theta_P trains on
batches weighted by these scores, and the rater learns from what that training does to the loss on
held-out data. One meta-step, for each inner model:

    w_t          = softmax(phi_eta(x_t1), ..., phi_eta(x_tB))           weights of the batch
    g_t          = sum over i of w_ti grad_theta l(x_ti; theta_t)       weighted inner gradient
    theta_(t+1)  = theta_t + Adam(g_t)                                  t = 0..T-1
    g_eta        = grad_eta mean over j of l(y_j; theta_T(eta))         meta-gradient

and then over the population, each model i with a meta-Adam of its own:

    eta          = eta + 1/P sum over i of Adam_i(g_eta,i)

    language_model   l(x; theta), the loss of a sequence
    meta_gradient    g_eta of one inner model
    meta_step        the meta-step over the population, and the rater's update
    population       the inner models, which persist between meta-steps, and their resets
    warm_up          the checkpoints that inner models start from
    mesh             all of it over several devices

Dimension letters, used as suffixes of array names in this package: those of
`datarater.rater_model.transformer`, and

    T  inner updates of a meta-step
    P  inner models of the population
    C  positions of a chunk of the loss
    M  micro-batches of a batch
"""
